"""This computer: what is known of graphics cards, what is here, and room on its disks."""
