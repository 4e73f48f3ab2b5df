"""A reproducible laboratory for class-incremental semantic segmentation."""

import warnings

# Libraries below look for notebook widgets that this project does without, and would say so in every notebook.
warnings.filterwarnings("ignore", message="IProgress not found")
