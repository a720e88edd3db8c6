"""What a tuned model's samples are like beside the references: the measures of `kamerton eval --fidelity`, its page."""
