"""What a job may do beside plain denoising, a module each behind the engine's hooks."""
