"""What a training run for J is made of; ``jaccli.training.loop`` puts it together."""
