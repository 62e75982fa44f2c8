"""The functional door: validate, plan, run, differentiate."""
