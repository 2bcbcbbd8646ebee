"""`flashar adapt`: what it is to do (job), what that takes (plan), the run, and what the run leaves behind."""
