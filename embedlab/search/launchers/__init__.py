"""Launchers: start the processes that train trials, with one file per launcher or base class."""
