# The shop's own variables. Without Compose: the address of your own PostgreSQL, and no file.
DATABASE_URL=postgresql+asyncpg://shop@database/shop
DATABASE_PASSWORD_FILE=/run/secrets/database_password
