"""What is rented: RunPod, claims, costs, how a pod is reached and how it ends."""
