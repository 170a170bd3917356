"""What a training run for J is made of; ``jaccli.regularize`` puts it together."""
