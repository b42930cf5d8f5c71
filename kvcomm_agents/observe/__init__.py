"""What is reported, and who is told: reports, their files, exporters and pictures."""
