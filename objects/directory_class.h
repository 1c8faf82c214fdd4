/*
 * directory_class - the object of which every node has a watched copy: who may
 * do what, and which members there are (DESIGN D10).
 *
 * There is one object of this class, at the one address below, and it lives in
 * shard 0. Its revision is the version of the directory. node/core/directory.h
 * is the copy.
 */
#ifndef HOLDFAST_OBJECTS_DIRECTORY_CLASS_H
#define HOLDFAST_OBJECTS_DIRECTORY_CLASS_H

#define DIRECTORY_TENANT "holdfast"
#define DIRECTORY_ENV    "system"
#define DIRECTORY_CLASS  "directory"
#define DIRECTORY_NAME   "cluster"
#define DIRECTORY_ADDRESS                                      \
	DIRECTORY_TENANT "/" DIRECTORY_ENV "/" DIRECTORY_CLASS \
			 "/" DIRECTORY_NAME
#define DIRECTORY_SHARD 0u

#endif
