"""Shipped files are composed once for all tests here."""

from reference.composed_once import shipped_files_composed_once as shipped_files_composed_once
