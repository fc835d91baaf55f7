"""The posterior of each datum: amortised, fitted locally, or drawn by HMC."""
