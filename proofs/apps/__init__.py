"""Small applications that the proofs put in the demo's place."""
