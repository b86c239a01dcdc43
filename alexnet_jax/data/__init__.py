"""Images, from files to batches. The way of an image through these modules:

sources   lists the images of a folder of class folders or of a TFDS set; glyphs draws a set of its own
prepare   scales them once with photos, and writes them as records with their labels and statistics
records   opens such a prepared set and reads any of its images
batches   puts the images of each step together, cropped and flipped as augment.plan drew for the epoch
augment   subtracts the mean and adds colour noise, in JAX, inside the training step; cuts the ten views of evaluation

Two helpers: host has threads and TensorFlow, classes the names of ILSVRC-2012's classes.
"""
