"""`lambda-grpo train`: from settings to a trained policy and its run folder."""
