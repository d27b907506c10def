"""What a run keeps and shares: its journal in the work folder, and the processes it is spread over."""
