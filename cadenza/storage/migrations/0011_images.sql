-- Names of images, and each publication of one. Newer publications have greater numbers.

CREATE TABLE image_name (
    environment TEXT NOT NULL,
    name TEXT NOT NULL,
    tag TEXT NOT NULL,
    image_id TEXT NOT NULL,
    published_at DOUBLE PRECISION NOT NULL,
    published_by TEXT NOT NULL,
    PRIMARY KEY (environment, name, tag)
);

CREATE TABLE image_publication (
    environment TEXT NOT NULL,
    name TEXT NOT NULL,
    tag TEXT NOT NULL,
    image_id TEXT NOT NULL,
    published_at DOUBLE PRECISION NOT NULL,
    published_by TEXT NOT NULL
);
CREATE INDEX image_publication_by_name ON image_publication (environment, name, published_at);
