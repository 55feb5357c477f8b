-- A plain login that serves sees for itself whether anything is missing, and then needs no right to create anything.

GRANT SELECT ON longpoll.migrations TO longpoll_service;
