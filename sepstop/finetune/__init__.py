"""The command `sepstop finetune`: a model learns classes from labeled texts."""
