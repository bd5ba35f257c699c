"""What a training or an evaluation leaves for people: summary, plots, drawings, error analysis."""
