"""Images, from files to batches. The way of an image through these modules:

glyphs    draws letters, the data set that needs no download
sources   lists the images of a folder of class folders, of a TFDS set or of glyphs
prepare   scales them once with photos, and writes them as records with their labels and statistics
records   opens such a prepared set and reads any of its images
batches   puts the images of each step together, cropped and flipped as augment.plan drew for the epoch
augment   subtracts the mean and adds colour noise, in JAX, inside the training step; cuts the ten views of evaluation
images    gives evaluation and predictions the images of a prepared split, or photos from elsewhere

Helpers: photos reads any photo as RGB and scales it, host has threads, cores and TensorFlow, classes the names of
ILSVRC-2012's classes.
"""
