"""Models, data and training loops: what the checks run, and what a user starts from. Copy a file and change it."""
