"""Run records: the contract between training, which writes records, and planning, which fits laws to records."""

from embedlab.records.run_record import (
    FILE,
    SCHEMA,
    Entries,
    Ledger,
    LossDefinition,
    RunId,
    RunRecord,
    Status,
    read_record,
    write_record,
)

__all__ = [
    "FILE",
    "SCHEMA",
    "Entries",
    "Ledger",
    "LossDefinition",
    "RunId",
    "RunRecord",
    "Status",
    "read_record",
    "write_record",
]
