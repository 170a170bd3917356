"""MODEL as a network that jaccli can run with its layers in sight."""
