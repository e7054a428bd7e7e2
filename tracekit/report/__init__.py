"""Results for people: tables (rich), charts (Altair), the self-contained HTML page, JSON."""
