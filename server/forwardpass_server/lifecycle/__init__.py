"""The life of a model version, from a folder in the repository to the last lease. Importing it imports nothing else."""
