"""The page of a report and its figures. Needs no torch."""
