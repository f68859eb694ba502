"""What the receiver costs, beside what a user would pick in its place. Needs Linux, as it reads /proc."""
