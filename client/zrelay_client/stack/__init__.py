"""The services of this machine as `zrelay up` runs them: started, watched, ended, and remembered between commands."""
