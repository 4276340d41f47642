"""The text of preparation: from a log to the ordered sessions of every user, as window SQL.

Plain SQL: LAG, ROW_NUMBER, SUM and COUNT OVER an explicit ORDER BY, joins, sub-queries, no vendor clause, so that
another engine can take the same text. One function = one step = the query of one table; `metarec.data.prepare` runs
them in this order. Column names, throughout:

    user_id, item_id   as in the file                 u, i   their codes: rank of the id among the sorted ids, from 0
    t                  microseconds, or the order     tie    file row (ties=row) or order column (ties=order)
    label              code of the session column     s      number of the session inside its user, from 1
    split              the log's word for the user's split (split.by=column); 0, 1, 2 once it is a code

Everything after the codes concerns one user at a time, hence one range of users at a time (a *part*): the window
operators then sort a few million rows in memory instead of the whole log on disk, and the answer is the same.

The total order of a user's events is (t, tie, i, label). Ids sort as numbers if every one of them is a canonical whole
number (no leading zero), and as text by code point otherwise.
"""

from __future__ import annotations

CANONICAL_INTEGER = "^(0|-?[1-9][0-9]*)$"


# --- the whole log ----------------------------------------------------------------------------------------------------


def distinct(column: str) -> str:
    """(id, n): the distinct values of a column of the log and their rows."""
    return f"SELECT {column} AS id, COUNT(*) AS n FROM log GROUP BY {column}"


def not_canonical(table: str) -> str:
    """How many ids of ``table`` (text) are no canonical whole number."""
    return f"SELECT COUNT(*) FROM {table} WHERE NOT regexp_matches(id, '{CANONICAL_INTEGER}')"


def codes(table: str, *, as_integers: bool) -> str:
    """(id, code, n): the rank, from 0, of each id of ``table``; ``as_integers``: text that sorts as numbers."""
    order = "id"
    if as_integers:
        # Longer means larger above zero and smaller below; unlike a cast, this knows no limit of 64 bits.
        order = """CASE WHEN id LIKE '-%' THEN -LENGTH(id) ELSE LENGTH(id) END,
                   CASE WHEN id LIKE '-%' THEN '' ELSE id END,
                   CASE WHEN id LIKE '-%' THEN id ELSE '' END DESC"""
    return f"SELECT id, CAST(ROW_NUMBER() OVER (ORDER BY {order}) - 1 AS INTEGER) AS code, n FROM {table}"


def split_words() -> str:
    """(id, split): each user and what the log's column calls his split; rows that say val and valid mean one split."""
    return "SELECT user_id AS id, MIN(split) AS split FROM log GROUP BY user_id"


def split_codes() -> str:
    """(split) of every user code in turn: 0 training, 1 validation, 2 test."""
    return """
        SELECT CASE split_word.split WHEN 'train' THEN 0 WHEN 'test' THEN 2 ELSE 1 END AS split
        FROM user_code JOIN split_word ON user_code.id = split_word.id ORDER BY user_code.code"""


def coded(*, tie: str | None, label: bool) -> str:
    """The log with codes for ids; ``tie`` names the column of the log that breaks ties, if any."""
    columns = "user_code.code AS u, item_code.code AS i, log.t AS t"
    columns += f", log.{tie} AS tie" if tie else ""
    columns += ", label_code.code AS label" if label else ""
    join_labels = "JOIN label_code ON log.session = label_code.id" if label else ""
    return f"""
        SELECT {columns} FROM log
        JOIN user_code ON log.user_id = user_code.id
        JOIN item_code ON log.item_id = item_code.id
        {join_labels}"""


def total_order(*, tie: bool, label: bool) -> str:
    """The columns that order the events of one user."""
    return "t" + (", tie" if tie else "") + ", i" + (", label" if label else "")


def small_users(table: str, least: int) -> str:
    """k-core, one half of a round: users of fewer than ``least`` events. Rounds end when neither half finds a row,
    and what is left then does not depend on which half comes first."""
    return f"SELECT u FROM {table} GROUP BY u HAVING COUNT(*) < {least}"


def small_items(table: str, least: int) -> str:
    """k-core, the other half: items of fewer than ``least`` events."""
    return f"SELECT i FROM {table} GROUP BY i HAVING COUNT(*) < {least}"


def event_time_at(table: str, position: int) -> str:
    """The time at ``position``, from 0, among the rising times of the events of ``table``: an exact quantile."""
    return f"""
        SELECT MIN(t) FROM (
            SELECT t, SUM(n) OVER (ORDER BY t ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS n_up_to
            FROM (SELECT t, COUNT(*) AS n FROM {table} GROUP BY t) AS times
        ) AS running WHERE n_up_to > {position}"""


# --- one part ---------------------------------------------------------------------------------------------------------


def part(table: str, first: int, last: int) -> str:
    """The events of the users ``first`` to ``last`` (codes, both included)."""
    return f"SELECT * FROM {table} WHERE u BETWEEN {first} AND {last}"


def n_distinct(table: str) -> str:
    """Events of ``table`` when rows that share (user, time, item) count once."""
    return f"SELECT COUNT(*) FROM (SELECT DISTINCT u, t, i FROM {table}) AS events"


def repeated(table: str) -> str:
    """One (u, i, t) that stands in more than one row of ``table``: the earliest."""
    return f"SELECT u, i, t FROM {table} GROUP BY u, i, t HAVING COUNT(*) > 1 ORDER BY t, u, i FETCH FIRST 1 ROW ONLY"


def without_repeats(table: str, columns: str, order: str) -> str:
    """The first row, in the total order, of those that share (user, time, item)."""
    return f"""
        SELECT {columns} FROM (
            SELECT {columns}, ROW_NUMBER() OVER (PARTITION BY u, t, i ORDER BY {order}) AS copy FROM {table}
        ) AS numbered WHERE copy = 1"""


def opening(rule: str, gap: int) -> str:
    """When an event opens a session: ``gap`` (strictly more than ``gap`` since the event before), ``user`` or
    ``column``.

    A session of the column is a run of events with one value: what the log calls one session but interleaves with
    another would otherwise hold events out of time.
    """
    if rule == "gap":
        return f"before_t IS NULL OR t - before_t > {gap}"
    return "before_t IS NULL" if rule == "user" else "before_t IS NULL OR label <> before_label"


def flagged(table: str, columns: str, order: str, rule: str, gap: int) -> str:
    """Adds ``opens`` (the event opens a session) and ``same_item`` (as the event just before it), 1 or 0."""
    before_label = ", LAG(label) OVER in_order AS before_label" if rule == "column" else ""
    return f"""
        SELECT {columns}, CASE WHEN {opening(rule, gap)} THEN 1 ELSE 0 END AS opens,
               CASE WHEN i = before_i THEN 1 ELSE 0 END AS same_item
        FROM (
            SELECT {columns}, LAG(t) OVER in_order AS before_t, LAG(i) OVER in_order AS before_i{before_label}
            FROM {table}
            WINDOW in_order AS (PARTITION BY u ORDER BY {order})
        ) AS with_event_before"""


def numbered(table: str, columns: str, order: str) -> str:
    """Adds ``s``. Of equal rows (duplicates=keep) the one that opens the session comes first, hence opens DESC."""
    return f"""
        SELECT {columns}, opens, same_item, CAST(SUM(opens) OVER (
            PARTITION BY u ORDER BY {order}, opens DESC ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ) AS INTEGER) AS s FROM {table}"""


def changes(table: str) -> str:
    """Without the events that repeat the item before them in the same session."""
    return f"SELECT * FROM {table} WHERE opens = 1 OR same_item = 0"


def long_sessions(table: str, columns: str, least: int) -> str:
    """The events of sessions of at least ``least`` events."""
    return f"""
        SELECT {columns}, s FROM (
            SELECT {columns}, s, COUNT(*) OVER (PARTITION BY u, s) AS n_events FROM {table}
        ) AS counted WHERE n_events >= {least}"""


def in_time(table: str, columns: str, first_cut: int, second_cut: int) -> str:
    """Training users (0) before the first cut, validation users (1) up to the second, test users (2) from it on."""
    chosen = ", ".join(f"{table}.{column}" for column in columns.split(", "))
    return f"""
        SELECT {chosen}, {table}.s FROM {table} JOIN user_split ON {table}.u = user_split.u
        WHERE (user_split.split = 0 AND {table}.t < {first_cut})
           OR (user_split.split = 1 AND {table}.t >= {first_cut} AND {table}.t < {second_cut})
           OR (user_split.split = 2 AND {table}.t >= {second_cut})"""


def in_order(table: str, order: str) -> str:
    """What goes into the arrays: users together, each in the total order."""
    return f"SELECT u, s, i, t FROM {table} ORDER BY u, {order}"
