"""A page in the browser that shows what a detector finds, and where its queries looked."""
