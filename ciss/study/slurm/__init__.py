"""Many runs on a cluster with Slurm: each run a job after the one it continues."""

TRY = "--- job "  # the line that begins each try in the log of a job
