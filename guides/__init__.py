"""What guidance is trained from: labels of data, and classifiers of noisy states that tell them."""
