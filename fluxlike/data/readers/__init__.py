"""Readers of data sets as they are published: image folders, IDX, CIFAR's binary files and CSV."""
