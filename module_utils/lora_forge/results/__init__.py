"""What came of it: verdicts, tables, the leader board, the report, W&B."""
