"""Audio question answering with GRPO: R1-AQA (arXiv 2503.11197) in small modules to read in one sitting."""

__version__ = "0.1.0"
