"""Tasks: one file each, with its problems, prompt, grade, steps and strategy."""
