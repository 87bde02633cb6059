"""What the stack does now: nginx's counters and those of every replica in one place, and the page that draws them."""
