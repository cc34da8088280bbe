"""What users bring: datasets and cases, read line by line, checked, and staged for trainers."""
