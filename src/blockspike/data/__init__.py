"""Data sets of spikes: file formats, preparation, batches and Lightning data modules."""
