"""What may change the copy of a model it is given: prune, factorise, distil, quantise, in that order."""
