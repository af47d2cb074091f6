"""What one step does: gradients are located and reduced, and launches follow."""
