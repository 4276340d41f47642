"""One paper, one file. An algorithm is handed losses of tasks; it never hears of items or models."""
