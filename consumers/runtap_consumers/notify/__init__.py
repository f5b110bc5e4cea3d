"""`runtap worker notify`: takes alerts from their topics to webhooks and to Alertmanager."""
