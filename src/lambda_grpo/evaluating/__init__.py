"""`lambda-grpo eval`: prompts completed, answers scored, policies compared."""
