"""What a credit changes in the gradient: `lambda-grpo effect`, on saved rollouts, by exact packed passes."""
