"""What trains, and what a training run leaves behind."""
