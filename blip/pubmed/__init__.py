"""From articles of PubMed Central to image-caption pairs. Imports nothing else of the package."""
