"""What a run leaves behind: tables of its epochs and steps, their files and plots."""
