"""Words questions and reads answers: published parsers, the strict one, and the prompts of other harnesses."""
