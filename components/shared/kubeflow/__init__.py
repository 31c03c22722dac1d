"""What the steps' Kubeflow faces share. The steps themselves know nothing of it."""
